/* Deliberately empty: BCC brings its own copy of the BPF interface. */
