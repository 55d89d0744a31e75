// Every test of the page, with one browser.

import "./look.test.mjs";
import "./acts.test.mjs";
import "./access.test.mjs";
import "./size.test.mjs";
