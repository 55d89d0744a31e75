// All tests with the Node SDK in one process, since starting the stand-in takes longer than they do.

import "./chat.test.mjs";
import "./embeddings.test.mjs";
import "./translated.test.mjs";
import "./errors.test.mjs";
