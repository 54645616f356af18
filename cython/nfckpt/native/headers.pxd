"""Headers: from the bytes of a frame to the header columns of its burst."""
from nfckpt.native.burst cimport Burst

cdef enum:
    ETH_ARP = 0x0806
    ETH_IP4 = 0x0800
    ETH_IP6 = 0x86dd
    ICMP = 1
    TCP = 6
    UDP = 17
    ICMP6 = 58
    VLAN_TAGS_MAX = 2
    IP6_HEADERS_MAX = 8         # extension headers walked in one packet; one more is malformed

cdef void parse(Burst b, int first, int end) noexcept nogil
