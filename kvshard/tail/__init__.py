"""What keeps the tail short: attempts, deadlines and hedging policies (pure), and the executor that performs them."""
