"""What a message is: one byte, the same on every transport. Payloads are drawn where they are made.

    1 EPOCH      active → standby   one captured epoch
    2 ACK        standby → active   committed through epoch e
    3 BEAT       either             alive, and how far
    4 BEAT_ACK   either             the answer, for the round trip
    5 OUTPUTS    active → standby   the outputs of an epoch whose inputs the standby did not see
    6 INPUTS     active → standby   frames the active has read, for a standby that sees nothing of the segment (native/shipment.pyx)
   16 CONTROL    either             a msgspec msgpack struct union: rare, schema-checked
"""

from __future__ import annotations

from typing import Final

EPOCH: Final = 1
ACK: Final = 2
BEAT: Final = 3
BEAT_ACK: Final = 4
OUTPUTS: Final = 5
INPUTS: Final = 6
CONTROL: Final = 16
