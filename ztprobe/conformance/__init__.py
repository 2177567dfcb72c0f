"""Whether pods get what their profile says: measured with UDP probes, judged, and a mismatch explained."""
