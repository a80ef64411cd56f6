"""Measurements that anybody can run again; each prints a table and writes its figures under build/bench/."""
