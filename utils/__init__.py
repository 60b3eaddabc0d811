"""What every step needs: options, devices, data, caches, the epoch loop, statistics, files."""
