"""Apps' directories on this host: checked against the policy, read, and matched to containers."""
