"""What a run is guarded against: signals, silence, values that are not finite, failures, a second process."""
