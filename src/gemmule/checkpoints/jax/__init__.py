"""Parameter trees of Google's JAX implementation, as .npz or orbax."""
