"""The main job on real input, from start to stop, with its figures and a worker killed in mid-run."""
