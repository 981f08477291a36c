"""State machines that come with ActorRaft, each an ordinary user's machine: nothing here has a privilege."""
