"""Everything that proves the promises; the root is a package so that helpers import by one name."""
