"""The userspace delay line where the kernel has no netem: NFQUEUE's rules, its process, its decisions."""
