"""The engine's core: requests, scheduler, pages, sampling. No threads, no I/O."""
