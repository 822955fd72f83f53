"""`python -m bench kernels`: each fused operation against plain PyTorch; one module per operation."""
