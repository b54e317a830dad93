"""Running a grid: workers that share a folder, on one machine or on a cluster."""
