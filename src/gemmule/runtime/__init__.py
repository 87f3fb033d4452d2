"""What a process runs on: device, dtype, memory, signals, and its rank among others."""
