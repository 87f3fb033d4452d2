"""`gemmule plan --cluster`: what a training run would take on machines that are not at hand."""
