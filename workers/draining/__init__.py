"""What every process needs that drains topics under a lease: offsets, claims, tenure, publishing, the broker's time."""
