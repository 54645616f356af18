"""Fuzzing of all that reads bytes from outside: what a peer, a wire, a file or an operator may send.

    python -m tests.fuzz                        every target for 10 s
    python -m tests.fuzz config --seconds 600

    tests/corpus/TARGET/    inputs that are kept: seeds of each kind, and every input that once found something
    .fuzz/TARGET/           what a run found worth following; not kept

Coverage-guided with atheris where it is installed (`pip install 'nfckpt[fuzz]'`): it sees the branches of Python code, which for the
native frame parser are those of its twin; other native code is reached by seeds that are whole and by mending the fields that say
how long something is. Without atheris the same targets get seeds mutated at random. The tests run each kept input, and a few
hundred mutations by hypothesis.
"""

NAMES = ("wire", "handshake", "epoch", "frame", "config", "pcap", "shipment")
