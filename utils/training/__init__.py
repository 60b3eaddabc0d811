"""The epoch loop, losses, accuracies, schedules and resuming."""
