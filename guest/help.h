// What `perdure-guest --help` says.
#pragma once

extern const char perdure_guest_help[];
