"""How the demo model is made: text, tokenizer, chats, the network, its training and its judging."""
