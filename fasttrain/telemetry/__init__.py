"""What a run tells: its folder, log and progress, metrics, GPUs, sinks and traces, and views of them."""
