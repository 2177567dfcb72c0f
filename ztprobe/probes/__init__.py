"""Programs in the kernel and the events they send: the only place that knows BCC."""
