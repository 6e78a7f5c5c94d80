"""Generated from proto/moorage_common/rpc/v1 by `make proto`; never edited."""
