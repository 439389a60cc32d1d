"""What runs in, or is sent to, a Ray Serve replica: limits that bind, the batcher, applications, Serve configs."""
