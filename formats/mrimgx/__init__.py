"""The Macrium Reflect X container (.mrimgx, .mrbakx)."""
