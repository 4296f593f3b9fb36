from maya1_tts.cli import main

raise SystemExit(main())
