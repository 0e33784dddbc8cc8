"""State machines without I/O: values and events in, values out; time is a parameter."""
