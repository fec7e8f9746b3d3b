"""Architecture only: no file access, no device policy, no environment."""
