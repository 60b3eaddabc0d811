"""Teachers, and the losses of each method that learns from one."""
