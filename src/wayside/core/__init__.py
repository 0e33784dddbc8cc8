"""Values and contracts: nothing here waits, nor knows a disk or a socket."""
