"""Engine `maya1`: a Llama writes SNAC codes as tokens, and SNAC's decoder turns them into sound."""
