// The thread that reads what happens to the machine's memory. It waits for nobody: a fault that is not read freezes a
// vCPU, a removal that is not read freezes whoever removes.
#pragma once

void events_start(void);
