"""What launch.sh starts and asks: the check before a run, the nodes meeting, torchrun, exit statuses."""
