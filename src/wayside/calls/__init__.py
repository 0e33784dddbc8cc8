"""Request/response and jobs: services, calls and those who work for them."""
