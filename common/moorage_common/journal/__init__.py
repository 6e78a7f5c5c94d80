"""The journal on a host: operations that outlive the process that starts them."""
