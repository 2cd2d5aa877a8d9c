// Content goes into the machine, to every place that it has. Nothing here is locked when it is called.
#include "work.h"

static void add_filled(const struct filled *filled) {
    work.figures.filled.copied += filled->copied;
    work.figures.filled.zeroed += filled->zeroed;
}

// Every run of the frame goes where it belongs, in the order of addresses, neighbours together.
void place_frame(struct lane *lane, uint32_t frame, const uint8_t *content, bool hot) {
    const struct map *map = work.map;
    struct filled filled = {0};
    bool read = !content;
    if (read)
        content = frame_content(lane, frame);
    for (uint32_t i = map->frame_runs[frame], end = map->frame_runs[frame + 1]; i < end;) {
        uint32_t run = map->by_frame[i], first = map->first[run], stop = map_end(map, run), at = map->at[run];
        for (i++; i < end; i++) {
            uint32_t next = map->by_frame[i];
            if (map->first[next] != stop || map->at[next] != at + (stop - first))
                break;
            stop = map_end(map, next);
        }
        memory_fill(first, stop, content + (size_t)at * PAGE, &filled);
    }
    pthread_mutex_lock(&work.lock);
    work.frame[frame] = FRAME_PLACED;
    work.figures.frames++;
    work.figures.decompressed += read;
    work.figures.prefetched += hot;
    add_filled(&filled);
    pthread_mutex_unlock(&work.lock);
}

void place_frame_job(struct lane *lane, const struct job *job) {
    place_frame(lane, job->number, job->content, false);
    if (job->content) {
        pthread_mutex_lock(&work.lock);
        hot_used(job->number);
        pthread_mutex_unlock(&work.lock);
    }
}

void place_window(const struct job *job) {
    struct filled filled = {0};
    bool zero = work.map->source[map_run(work.map, job->number)] == SOURCE_ZERO;
    memory_fill(job->number, job->end, zero ? NULL : template_at(job->number), &filled);
    pthread_mutex_lock(&work.lock);
    bit_set(work.filled, job->number);
    work.figures.prefetched += job->hot;
    add_filled(&filled);
    pthread_mutex_unlock(&work.lock);
}

void place_block(struct lane *lane, uint32_t block) {
    struct filled filled = {0};
    uint32_t run = map_run(work.map, block), source = work.map->source[run];
    const uint8_t *content = NULL;
    if (memory_is_removed(block))
        content = NULL;
    else if (source == SOURCE_TEMPLATE)
        content = template_at(block);
    else if (source >= SOURCE_FRAME)
        content = frame_content(lane, source - SOURCE_FRAME) + (size_t)(work.map->at[run] + block - work.map->first[run]) * PAGE;
    memory_fill(block, block + 1, content, &filled);
    pthread_mutex_lock(&work.lock);
    add_filled(&filled);
    pthread_mutex_unlock(&work.lock);
}
