"""`python -m nfckpt.node FD`: what a keeper starts."""

import os
import sys

from nfckpt.node.process import main

ended = main()
sys.stderr.flush()
os._exit(ended)         # the peer waits for our death, and not for the interpreter's tidying up
