//! What a signed-in user gets over a session channel.
