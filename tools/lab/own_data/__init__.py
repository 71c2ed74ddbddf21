"""What a new user with data of their own runs into, tried by one script on any version."""
