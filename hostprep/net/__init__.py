"""What the network check stands on: addresses and routes, paths, time services, Docker's networks, a site's plan."""
