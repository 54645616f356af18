"""What every test may count on."""

import signal

# A runner started in the background of a shell has SIGINT ignored, and its children inherit that: tests that interrupt a
# command would wait for ever. A handler here means the default there (exec resets it).
signal.signal(signal.SIGINT, signal.default_int_handler)
