"""What would the tail be like if? A discrete-event model of router and leaves with the real policy code inside.

    latency            how long an attempt takes at a healthy leaf: measured, given by quantiles, or whole requests' legs
    scenario           what is asked: the cluster, what makes leaves slow, and with which defences
    model_leaf         a leaf on the virtual clock: pauses, slowness, a queue
    model              the event loop: requests, legs, attempts
    prediction         `predict`: one run of the model, and its figures
    order_statistics   the arithmetic of a fan-out, without a model
    tail_at_scale      the figures that "The Tail at Scale" published, beside ours

All of it is pure: time is virtual, chance is seeded. The same arguments give the same figures.
"""
