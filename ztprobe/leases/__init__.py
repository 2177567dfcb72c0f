"""What was put on pods for a time: the record, what stood there before, what traces are told of it."""
