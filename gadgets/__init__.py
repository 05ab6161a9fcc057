"""From readouts on a wire or in a file to images: settings, chains, stages, server, client, commands."""
