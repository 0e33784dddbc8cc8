"""What tests share, each thing once: a module is named after what it has."""
