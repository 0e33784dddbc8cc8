"""Values and contracts: nothing here knows a disk or a socket."""
