"""What the server makes of a round's updates: means, robust centres, optimisers, a look at each update."""
