"""nfckpt bench: what a checkpoint costs on this machine, each figure beside what limits it.

Picture     A A' A A' A A' …     two arms in turn, in slices of some 50 ms of one run; a figure is the median over the pairs
            └┬─┘ └┬─┘ └┬─┘       of slices, its spread the quartiles. What slows the machine slows both arms of a pair.
            ratio ratio ratio

            process of the bench            its child
            CPU 0: active, the app          CPU 1: standby         joined by sealed shared memory, as in profile host
            └── times, CPU, counters        └── digest of its arena at the end

Rooms       targets  the rows: key, what it says, unit, target          slices   pairs, spread, which slices do not count
            pair     the two processes                                  machine  where it was measured
            loopback both in one thread, for bytes                      capture  what a poll adds, alone
            figure   one row's outcome; how much work a row may do      report   all rows: table, JSON, exit code
            takeovers  real pairs in a box, ended for real: the rows of the group `failover`, which run when asked for
            rows/    one mechanism each: `measure(scale)` → figures     rivals/  the same NAT as others would keep its state

Promises    B1 a row whose two arenas (or whose rivals' outputs) differ is an error, not a figure.
            B2 a slice in which the kernel or the hypervisor ran somebody else on our CPUs is measured again, a bounded
               number of times; after that the figure says how many were disturbed.
            B3 the settings behind a figure are printed with it.  B4 nothing is left behind, also after Ctrl-C.
"""
